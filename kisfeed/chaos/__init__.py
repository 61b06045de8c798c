"""What can go wrong, rehearsed: a model KIS in virtual time, schedules of faults, and checkers.

Everything here repeats from its seed. Checkers read what the model server counted, never what
the program under test says of itself.
"""
