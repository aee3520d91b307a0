"""Epochs trained elsewhere, by machines that share nothing with this one but the store.

An order is one epoch of one run. Whoever holds the run's lease places it, as an object of the store; a call of a remote
function carries it out, with `trl`, and says what it does in objects of the same store. So whoever launches the run next
finds the order, and goes on following it, whatever has happened to the process that placed it.
"""
