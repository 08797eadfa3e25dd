"""The groups of commands that the command line is made of."""
