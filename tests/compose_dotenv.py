"""A model of how ``docker compose`` reads ``.env`` files, step by step as its parser goes (compose-go v2, ``dotenv``).

Of its own, so that it can contradict `config.dotenv`: no regular expression of that is used here. A variable that
would be expanded is looked up in nothing, and so is empty.
"""

from __future__ import annotations

_SPACES = "\t\v\f\r \x85\xa0"
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", '"': '"', "\\": "\\"}


class ComposeError(Exception):
    """Compose refuses the file."""


def read(text: str) -> dict[str, str]:
    """Return the variables of a file.

    Raises:
        ComposeError: compose refuses it.
    """
    text = text.removeprefix("\ufeff")
    found: dict[str, str] = {}
    while True:
        text = _statement(text)
        if not text:
            return found
        name, text, is_bare = _name(text)
        if not is_bare:
            found[name], text = _value(text)


def _statement(text: str) -> str:
    while True:
        text = text.lstrip()
        if not text.startswith("#"):
            return text
        _, _, text = text.partition("\n")


def _name(text: str) -> tuple[str, str, bool]:
    if text.startswith("export") and text[6:7].isspace():
        text = text[6:].lstrip(_SPACES)
    for at, char in enumerate(text):
        if char in _SPACES:
            continue
        if char in "=:\n":
            name = text[:at].rstrip()
            if " " in name:
                raise ComposeError("a space in a name")
            return name, text[at + 1 :].lstrip(_SPACES), char == "\n"
        if not (char in "_.-[]" or char.isalpha() or char.isnumeric()):
            raise ComposeError("a character in a name")
    raise ComposeError("a name alone at the end")


def _value(text: str) -> tuple[str, str]:
    mark = text[:1]
    if not mark or mark not in "'\"":
        line, _, rest = text.partition("\n")
        return _substituted(line.partition(" #")[0].rstrip()), rest
    value, escaped = "", False
    for at in range(1, len(text)):
        char = text[at]
        if char == mark and not escaped:
            return _substituted(_unescaped(value)) if mark == '"' else value, text[at + 1 :]
        if char == mark:
            value, escaped = value + char, False
        elif char == "\\" and not escaped:
            escaped = True
        elif escaped:
            value, escaped = value + "\\" + char, False
        else:
            value += char
    raise ComposeError("a quote that isn't closed")


def _unescaped(text: str) -> str:
    value, at = "", 0
    while at < len(text):
        following = text[at + 1 : at + 2]
        octal = text[at + 2 : at + 5]
        if text[at] == "\\" and following == "$":
            value, at = value + "$$", at + 2
        elif text[at] == "\\" and following in _LETTERS and following:
            value, at = value + _LETTERS[following], at + 2
        elif (
            text[at] == "\\"
            and following == "0"
            and len(octal) == 3
            and set(octal) <= set("01234567")
            and octal < "400"
        ):
            value, at = value + chr(int(octal, 8)), at + 5
        else:
            value, at = value + text[at], at + 1
    return value


def _substituted(text: str) -> str:
    value, at = "", 0
    while at < len(text):
        if text[at] != "$":
            value, at = value + text[at], at + 1
        elif text[at + 1 : at + 2] == "$":
            value, at = value + "$", at + 2
        else:
            return value + "<expanded>"
    return value
