"""Metrics as text: `f_beta(2)`, `precision st recall >= 0.8`, `2*tp/(2*tp + fp + fn)`.

    metric      = sum [ ("st" | "s.t." | "subject to") constraint { ("," | "and") constraint } ]
    constraint  = sum ">=" number
    sum         = product { ("+" | "-") product }
    product     = signed { ("*" | "/") signed }
    signed      = { "+" | "-" } power
    power       = atom [ ("**" | "^") signed ]
    atom        = number | cell | named [ "(" [ number { "," number } ] ")" ] | "sqrt" "(" sum ")" | "(" sum ")"

A small recursive-descent parser of its own: nothing is ever evaluated as Python.
"""

from __future__ import annotations

import difflib
import inspect
import re
from typing import NamedTuple

from robustrun.methods.adversarial_prediction.expression import (
    _ENTRIES,
    Entry,
    Expression,
    Number,
    UnsupportedMetric,
    sqrt,
)
from robustrun.methods.adversarial_prediction.metric import NAMED, Constraint, Metric, inferred_special_cases

_MAX_LENGTH = 500  # also bounds the nesting, so that no expression can exhaust the stack
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>s\.t\.|[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<operator>\*\*|>=|≥|[-+*/^(),]))",
    re.ASCII,
)
_ALIASES = {"fbeta": "f_beta", "f": "f_beta", "f_1": "f1", "f_2": "f2", "cohen_kappa": "kappa", "tpr": "recall"}


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


def parse_metric(
    text: str,
    *,
    special_case_positive: bool | None = None,
    special_case_negative: bool | None = None,
) -> Metric:
    """The metric that a text describes.

    Names are case-insensitive. The special cases default to those that the formula needs (where it is 0/0);
    give them to force one or to have a missing one refused.

    Raises:
        UnsupportedMetric (a ConfigError): the text is not a metric, or not one that the game supports.
    """
    if not isinstance(text, str):
        raise UnsupportedMetric(f"a metric is written as text, not {text!r}")
    parser = _Parser(text)
    expression = parser.sum()
    constraints = (*parser.carried(expression), *parser.constraints())
    parser.expect_end()
    positive, negative = inferred_special_cases(expression)
    if special_case_positive is not None:
        positive = special_case_positive
    if special_case_negative is not None:
        negative = special_case_negative
    return Metric(expression, positive, negative, constraints, name=" ".join(text.split()))


class _Parser:
    def __init__(self, text: str):
        if len(text) > _MAX_LENGTH:
            raise UnsupportedMetric(f"a metric expression has at most {_MAX_LENGTH} characters, this one {len(text)}")
        self.text = text
        self.tokens = self._tokens()
        self.next = 0
        self.depth = 0
        self.constrained: list[Metric] = []  # named metrics that bring constraints of their own

    def _tokens(self) -> list[_Token]:
        tokens, position, end = [], 0, len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None:
                at = position + len(self.text[position:]) - len(self.text[position:].lstrip())
                raise self._error(f"unexpected {self.text[at]!r}", at)
            kind = str(match.lastgroup)
            word = match.group(kind)
            word = {"^": "**", "≥": ">="}.get(word, word.lower() if kind == "name" else word)
            tokens.append(_Token(kind, word, match.start(kind)))
            position = match.end()
        tokens.append(_Token("end", "end of the expression", len(self.text)))
        return tokens

    def _error(self, what: str, position: int) -> UnsupportedMetric:
        return UnsupportedMetric(f"metric '{self.text.strip()}': {what} at character {position + 1}")

    @property
    def token(self) -> _Token:
        return self.tokens[self.next]

    def _take(self, *texts: str) -> _Token | None:
        if self.token.kind in ("operator", "name") and self.token.text in texts:
            self.next += 1
            return self.tokens[self.next - 1]
        return None

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            raise self._error(f"expected '{text}' but found '{self.token.text}'", self.token.position)

    def expect_end(self) -> None:
        if self.token.kind != "end":
            hint = "; a constraint follows 'st', as in 'precision st recall >= 0.8'" if self.token.text == ">=" else ""
            raise self._error(f"unexpected '{self.token.text}'{hint}", self.token.position)

    def carried(self, expression: Expression) -> tuple[Constraint, ...]:
        """The constraints of a named metric such as precision_given_recall(0.8), which must stand alone."""
        for metric in self.constrained:
            if metric.expression is not expression:
                raise UnsupportedMetric(
                    f"metric '{self.text.strip()}': '{metric.name}' has constraints and cannot be part of a formula; "
                    "write the formula, then 'st' and the constraints"
                )
            return metric.constraints
        return ()

    def constraints(self) -> tuple[Constraint, ...]:
        if self._take("subject"):
            self._expect("to")
        elif not self._take("st", "s.t."):
            return ()
        found = [self._constraint()]
        while self._take(",", "and"):
            found.append(self._constraint())
        return tuple(found)

    def _constraint(self) -> Constraint:
        expression = self.sum()
        self._expect(">=")
        threshold = self._number()
        return Constraint(Metric(expression, *inferred_special_cases(expression)), threshold)

    def _number(self) -> float:
        sign = -1.0 if self._take("-") else 1.0
        if self.token.kind != "number":
            raise self._error(f"expected a number but found '{self.token.text}'", self.token.position)
        self.next += 1
        return sign * float(self.tokens[self.next - 1].text)

    def sum(self) -> Expression:
        left = self._product()
        while operator := self._take("+", "-"):
            right = self._product()
            left = left + right if operator.text == "+" else left - right
        return left

    def _product(self) -> Expression:
        left = self._signed()
        while operator := self._take("*", "/"):
            right = self._signed()
            left = left * right if operator.text == "*" else left / right
        return left

    def _signed(self) -> Expression:
        negative = False
        while operator := self._take("+", "-"):
            negative ^= operator.text == "-"
        value = self._power()
        if not negative:
            return value
        return Number(-value.value) if isinstance(value, Number) else -value

    def _power(self) -> Expression:
        base = self._atom()
        return base ** self._nested(self._signed) if self._take("**") else base

    def _nested(self, rule):
        """One level deeper: refused beyond a depth that no metric needs."""
        self.depth += 1
        if self.depth > 40:
            raise self._error("nested too deeply", self.token.position)
        value = rule()
        self.depth -= 1
        return value

    def _atom(self) -> Expression:
        token = self.token
        if token.kind == "number":
            return Number(self._number())
        if self._take("("):
            inside = self._nested(self.sum)
            self._expect(")")
            return inside
        if token.kind != "name":
            raise self._error(f"expected a number or a name but found '{token.text}'", token.position)
        self.next += 1
        if token.text == "sqrt":
            self._expect("(")
            inside = self._nested(self.sum)
            self._expect(")")
            return sqrt(inside)
        if token.text in _ENTRIES:
            return Entry(token.text)
        return self._named(token)

    def _named(self, token: _Token) -> Expression:
        name = _ALIASES.get(token.text, token.text)
        if name not in NAMED:
            known = [*_ENTRIES, *NAMED, "sqrt"]
            near = difflib.get_close_matches(token.text, known, 1)
            hint = f", did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
            raise self._error(f"unknown name '{token.text}'{hint}", token.position)
        arguments: list[float] = []
        if self._take("("):
            while not self._take(")"):
                if arguments:
                    self._expect(",")
                arguments.append(self._number())
        most = len(inspect.signature(NAMED[name]).parameters)
        if len(arguments) > most:
            raise self._error(f"'{name}' takes at most {most} numbers, not {len(arguments)}", token.position)
        metric = NAMED[name](*arguments)
        if metric.constraints:
            self.constrained.append(metric)
        return metric.expression
