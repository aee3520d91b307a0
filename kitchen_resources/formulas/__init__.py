"""Pure functions of the field: schedules, hyperparameters, scoring, metrics and the batch plan.

Each is the one place its formula is written, and is called by a stage, a loop or an adapter. Importing them
needs the standard library only.
"""
