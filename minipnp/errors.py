"""The one exception that a user's mistake ends in."""


class InputError(ValueError):
    """Something that was asked for or given cannot be used.

    The message is one line that says what is wrong and what to do. The command line prints it and exits with 2.
    """
