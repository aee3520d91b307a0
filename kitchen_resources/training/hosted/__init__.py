"""Runs that a service trains from the first row to the last: a job is made there, looked at, and its adapter brought here.

What its steps receive and come to, nobody tells. So all epochs of the recipe are one epoch of the run's plan, with one
checkpoint at its end.
"""
