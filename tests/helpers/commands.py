"""Commands that end early, with an exit code and one line on stderr."""


def ended(capsys, call, *arguments, **settings):
    """The exit code of a call, and its one line on stderr."""
    capsys.readouterr()
    try:
        code = call(*arguments, **settings)
    except SystemExit as stop:
        code = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


def refusal(main, words, capsys):
    """The line with which a command refuses what it is given."""
    code, line = ended(capsys, main, words)
    assert code == 2
    return line
