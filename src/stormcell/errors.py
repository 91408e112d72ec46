"""The one exception for input that a person can mend: the command line prints it as a sentence and exits with 2."""


class InputError(ValueError):
    """What the user gave is wrong. The message names the file or option and says what to do next."""
