"""What every verb does: arguments in, one call into the package, a few lines of output.

Nothing heavy is imported before a verb runs, so --help answers at once.
"""
