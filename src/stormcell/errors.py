"""The one exception for input that a person can mend: the command line prints it as a sentence and exits with 2."""


class InputError(ValueError):
    """What the user gave is wrong. The message names the file or option and says what to do next."""


def reason(error: BaseException) -> str:
    """The first line of what a library said, or the kind of its error if it said nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
