"""What is wrong with this machine, key, network or model: checks that look, send as little as they can, and never fail.

Showing what was found is the business of `faces.doctor`; words and exit codes are the command line's.
"""
