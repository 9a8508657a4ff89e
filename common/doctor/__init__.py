"""What `make doctor` looks at: Python and packages, machine, disk, data, run folders.  Standard library only, until a
part needs more and says so where it is missing; nothing is written but one small file that is removed again.
"""
