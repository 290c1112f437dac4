"""What an option is: its default, its range or choices, what it belongs to, and what it means."""

import ast
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxcls.errors import UserError
from flaxcls.system.text import did_you_mean

_KINDS = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    str: 'a text',
    tuple: 'a list of numbers such as 3,4,6',
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One row of `flaxcls.config.options.OPTIONS`, which all that deals with options reads.

    Attributes:
      key: dotted, such as augment.min_area.
      initial: the default; or a type, for an option that is None unless it is given.
      help: what it means, in one line.
      choices: the values that it may have.
      at_least, above, below, at_most: bounds of a number.
      must_be: (requirement in words, test of a value), for what bounds cannot say.
      only_with: {key: value or values} of another option, without which this one is refused; not
        for what a config file often sets beside what a flag then switches off, as augment.pad.
      attribute: it is an attribute of the network's module, in the families that have it.
      neutral: it leaves the result alone, so a resumed run may change it.
      varies: beside what is neutral, runs of one experiment may differ in it.
      same_logits: beside what is neutral, it leaves the logits of a checkpoint alone.
      selects_images: it says which images there are to train and to evaluate on.
      origin: the extension that has added it; '' for flaxcls's own.
    """

    key: str
    initial: Any
    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    at_most: float | None = None
    must_be: tuple[str, Callable[[Any], bool]] | None = None
    only_with: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attribute: bool = False
    neutral: bool = False
    varies: bool = False
    same_logits: bool = False
    selects_images: bool = False
    origin: str = ''

    @property
    def default(self) -> Any:
        return None if isinstance(self.initial, type) else self.initial

    @property
    def kind(self) -> type:
        """The type of its values but None: bool, int, float, str or tuple."""
        return self.initial if isinstance(self.initial, type) else type(self.initial)

    @property
    def requirement(self) -> str:
        """What a value must be, in words; '' where any value of the type will do."""
        if self.must_be:
            return self.must_be[0]
        if self.at_least is not None and self.at_most is not None:
            return f'from {self.at_least} to {self.at_most}'
        if self.above is not None and self.below is not None:
            return f'between {self.above} and {self.below}'
        bounds = {
            'at least': self.at_least,
            'above': self.above,
            'below': self.below,
            'at most': self.at_most,
        }
        return ' and '.join(
            f'{word} {bound}' for word, bound in bounds.items() if bound is not None
        )

    def parse(self, value: Any) -> Any:
        """Returns a value, or its text as on the command line, as one of the option's type.

        Raises:
          UserError: it is of another type.
        """
        if (value is None or value == 'None') and self.default is None:
            return None
        try:
            return _convert(value, self.kind)
        except (ValueError, SyntaxError, TypeError, KeyError, OverflowError):
            raise UserError(
                f'config.{self.key}={value!r} is not {_KINDS[self.kind]}; the default is '
                f'{self.default!r}.'
            ) from None

    def accepts(self, value: Any) -> bool:
        """Returns whether a value of the option's type is within its bounds."""
        numbers = value if isinstance(value, tuple) else (value,)
        if self.kind in (float, tuple) and not all(map(math.isfinite, numbers)):
            return False
        if self.must_be:
            return self.must_be[1](value)
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def require(self, value: Any) -> None:
        """Raises UserError unless a value of the option's type is among those that it may have."""
        if value is None:
            return
        if self.choices:
            require_choice(self.key, value, self.choices)
        elif not self.accepts(value):
            requirement = self.requirement or 'a finite number'
            raise UserError(f'config.{self.key}={value!r} must be {requirement}.')

    def lacks(self, values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
        """Returns the (key, values) of `only_with` that a config does not have; None: it has all.

        Args:
          values: of all options, by dotted key.
        """
        for key, wanted in self.only_with.items():
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            if values[key] not in wanted:
                return key, wanted
        return None


def require_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError unless `value` is one of `choices`, suggesting the closest one."""
    if value not in choices:
        remedy = did_you_mean(value, choices) or f'; choose from {", ".join(choices)}'
        raise UserError(f'config.{key}={value!r} is unknown{remedy}.')


def _convert(value: Any, kind: type) -> Any:
    if kind is str:
        if not isinstance(value, str):
            raise TypeError
        return value
    if kind is tuple:
        value = ast.literal_eval(value) if isinstance(value, str) else value
        value = tuple(value) if isinstance(value, Sequence) else (value,)
        if not all(isinstance(item, int | float) for item in value):
            raise TypeError
        return value
    if kind is bool:
        return {'true': True, '1': True, 'false': False, '0': False}[str(value).lower()]
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if kind is float:
        return number
    if number != int(number):
        raise ValueError
    # Whole numbers beyond 2**53 would lose digits on the way through float.
    return int(value) if str(value).lstrip('+-').isdigit() else int(number)


def as_flag(value: Any) -> str:
    """Returns the value of an option as the command line takes it."""
    if isinstance(value, tuple):
        return ','.join(map(str, value)) if value else '()'
    return str(value)
