"""Conditions on images, as in SQL's WHERE: `time_of_day = 'Night' AND location IN ('location_sf', 'location_phx')`.

A condition is made of columns of the table `image` (but its lists and bytes), numbers, strings in single quotes,
`= <> != < <= > >=`, `[NOT] IN (…)`, `[NOT] LIKE` (`%`, `_`), `[NOT] BETWEEN … AND …`, `IS [NOT] NULL`, `NOT`, `AND`,
`OR` and parentheses, with SQL's meaning and precedence: what is unknown because a column is null is not kept. It
becomes an expression of pyarrow; nothing of it is ever executed as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from datalake.commit import LakeError
from datalake.schema import IMAGE

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|(?P<text>'(?:[^']|'')*')|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|<>|!=|[=<>(),]))"
)
_COMPARISONS: dict[str, Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    "=": lambda left, right: left == right,
    "<>": lambda left, right: left != right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}
_KEYWORDS = {"AND", "OR", "NOT", "IN", "LIKE", "BETWEEN", "IS", "NULL"}
# What can be compared; lists and bytes cannot.
_TYPES = {
    field.name: "text" if pa.types.is_string(field.type) else "number"
    for field in IMAGE
    if pa.types.is_string(field.type) or pa.types.is_integer(field.type)
}
# Deeper ones are no condition anybody wrote, and each level takes several of Python's own.
_MAX_DEPTH = 50


@dataclass(frozen=True)
class Where:
    """A condition on the rows of `image`.

    text: as it was written
    expression: bool or null for each row; null is not kept
    columns: that it is about
    """

    text: str
    expression: pc.Expression
    columns: frozenset[str]


def parse_where(text: str) -> Where:
    """Return the condition; raises LakeError, in one line, where it is none or names another column."""
    reader = _Reader(text)
    expression = reader.condition(0)
    reader.expect_end()
    return Where(text, expression, frozenset(reader.columns))


class _Token(NamedTuple):
    """kind: `number`, `text`, `word`, `sign`, `end`; word: in capitals, for comparison with keywords."""

    kind: str
    value: str
    start: int

    @property
    def word(self) -> str:
        return self.value.upper() if self.kind == "word" else ""


class _Operand(NamedTuple):
    """A column or a literal, and whether it is `text` or a `number`."""

    expression: pc.Expression
    kind: str
    name: str


class _Reader:
    """Reads a condition from left to right, a method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text, self._tokens, self._place = text, _tokens(text), 0
        self.columns: set[str] = set()

    def condition(self, depth: int) -> pc.Expression:
        """Read `… OR …`."""
        if depth > _MAX_DEPTH:
            raise self._error(f"expected at most {_MAX_DEPTH} conditions in each other")
        found = self._conjunction(depth)
        while self._take("OR"):
            found = found | self._conjunction(depth)
        return found

    def expect_end(self) -> None:
        """Raise where something is left."""
        if self._next.kind != "end":
            raise self._error("expected AND, OR or the end")

    def _conjunction(self, depth: int) -> pc.Expression:
        found = self._negation(depth)
        while self._take("AND"):
            found = found & self._negation(depth)
        return found

    def _negation(self, depth: int) -> pc.Expression:
        negated = False
        while self._take("NOT"):
            negated = not negated
        if self._take_sign("("):
            found = self.condition(depth + 1)
            self._expect(")")
        else:
            found = self._predicate()
        return ~found if negated else found

    def _predicate(self) -> pc.Expression:
        left = self._operand()
        if self._take("IS"):
            negated = self._take("NOT")
            if not self._take("NULL"):
                raise self._error("expected NULL")
            return left.expression.is_valid() if negated else left.expression.is_null()
        if self._next.value in _COMPARISONS and self._next.kind == "sign":
            return _COMPARISONS[self._advance().value](left.expression, self._operand(left).expression)
        negated = self._take("NOT")
        if self._take("IN"):
            found = self._member(left)
        elif self._take("BETWEEN"):
            low = self._operand(left)
            if not self._take("AND"):
                raise self._error("expected AND")
            found = (left.expression >= low.expression) & (left.expression <= self._operand(left).expression)
        elif self._take("LIKE"):
            found = self._like(left)
        else:
            raise self._error("expected a comparison, IN, LIKE, BETWEEN or IS NULL")
        return ~found if negated else found

    def _member(self, left: _Operand) -> pc.Expression:
        # Not `isin`: there null is no member, and so NOT IN would keep it.
        self._expect("(")
        found = left.expression == self._operand(left).expression
        while self._take_sign(","):
            found = found | (left.expression == self._operand(left).expression)
        self._expect(")")
        return found

    def _like(self, left: _Operand) -> pc.Expression:
        if left.kind != "text" or self._next.kind != "text":
            raise self._error("expected text on both sides of LIKE")
        return pc.match_like(left.expression, _unquoted(self._advance().value))

    def _operand(self, other: _Operand | None = None) -> _Operand:
        """Read a column or literal, of the same kind as what it is compared with."""
        token = self._next
        if token.kind == "number":
            value = float(token.value) if re.search(r"[.eE]", token.value) else int(token.value)
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise self._error("expected a number of 64 bits")
            found = _Operand(pc.scalar(value), "number", token.value)
        elif token.kind == "text":
            found = _Operand(pc.scalar(_unquoted(token.value)), "text", token.value)
        elif token.kind == "word" and token.word not in _KEYWORDS:
            if token.value not in _TYPES:
                raise self._error(f"there is no column {token.value}, only {', '.join(_TYPES)}; text is in 'quotes'")
            self.columns.add(token.value)
            found = _Operand(pc.field(token.value), _TYPES[token.value], token.value)
        else:
            raise self._error("expected a column, a number or 'text'")
        if other is not None and other.kind != found.kind:
            raise self._error(f"{other.name} is {'a ' if other.kind == 'number' else ''}{other.kind}, unlike this")
        self._advance()
        return found

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _advance(self) -> _Token:
        token = self._next
        self._place += 1
        return token

    def _take(self, keyword: str) -> bool:
        taken = self._next.word == keyword
        self._place += taken
        return taken

    def _take_sign(self, sign: str) -> bool:
        taken = self._next.kind == "sign" and self._next.value == sign
        self._place += taken
        return taken

    def _expect(self, sign: str) -> None:
        if not self._take_sign(sign):
            raise self._error(f"expected {sign}")

    def _error(self, what: str) -> LakeError:
        return _error(self._text, self._next.start, what)


def _tokens(text: str) -> list[_Token]:
    tokens, place = [], 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            start = place + len(text[place:]) - len(text[place:].lstrip())
            raise _error(text, start, "expected a column, an operator, a number or 'text'")
        kind = str(match.lastgroup)
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        place = match.end()
    return [*tokens, _Token("end", "", end)]


def _unquoted(text: str) -> str:
    return text[1:-1].replace("''", "'")


def _error(text: str, start: int, what: str) -> LakeError:
    at = f"at {' '.join(text[start : start + 30].split())!r}" if text[start:].strip() else "at its end"
    return LakeError(f"--where {' '.join(text.split())}: {what}, {at}")
