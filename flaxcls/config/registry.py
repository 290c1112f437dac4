"""Tables of what an option names, and the decorator that adds to them, here and in extensions.

  @LOSSES.register('softmax')
  def softmax_cross_entropy(logits, targets): ...

What is registered takes further options as keyword-only arguments of the same name:
`def focal(logits, targets, *, focal_gamma)` gets config.focal_gamma.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from flaxcls.config import extensions
from flaxcls.config.option import Option
from flaxcls.config.options import OPTIONS
from flaxcls.errors import UserError

T = TypeVar('T')


class Registry(dict[str, Any]):
    """Name -> what the option `key` means by it.

    Attributes:
      key: of the option that names a row, such as optimizer.name; of tables that no option names
        rows of, the section of their options with a dot behind it.
      facts: name -> what was said of a row beside it.
    """

    def __init__(self, key: str, rows: Mapping[str, Any] | None = None):
        super().__init__(rows or {})
        self.key = key
        self.facts: dict[str, dict[str, Any]] = {}
        self._origins: dict[str, str] = {}  # Of what an extension has added.

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """Returns a decorator that adds a row.

        Raises:
          UserError: there is a row of that name.
        """

        def add(thing: T) -> T:
            # An extension may be what first imports a module of flaxcls's own.
            own = getattr(thing, '__module__', '').startswith('flaxcls.')
            self._make_room(name, thing)
            self[name], self.facts[name] = self.row_of(thing, **facts), facts
            if not own:
                self._origins[name] = extensions.being_loaded()
                extensions.on_removal(functools.partial(self._remove, name))
                self._add_choice(name)
            return thing

        return add

    def row_of(self, thing: Any, **facts: Any) -> Any:
        """Returns what the table holds of a thing that is registered."""
        return thing

    def bind(self, name: str, values: Mapping[str, Any]) -> Callable[..., Any]:
        """Returns the row with its options, see `options`, given."""
        return functools.partial(self[name], **self.options(name, values))

    def options(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of a row's keyword-only arguments: its options.

        Args:
          name: of the row.
          values: of the options in its section of the config, by their names there; one that is
            not among them has its default.

        Raises:
          UserError: there is no such option.
        """
        section = self.key.rpartition('.')[0]
        found = {}
        for parameter in inspect.signature(self[name]).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            key = f'{section}.{parameter.name}' if section else parameter.name
            if parameter.name in values:
                found[parameter.name] = values[parameter.name]
            elif key in OPTIONS:
                found[parameter.name] = OPTIONS[key].default
            elif parameter.default is parameter.empty:
                raise UserError(
                    f'{name!r} takes {parameter.name}, and there is no option config.{key}; add '
                    f'it with flaxcls.add_option(flaxcls.Option({key!r}, ...)).'
                )
        return found

    def of_config(self, names: Collection[str]) -> list[str]:
        """Returns the rows of flaxcls, and of what stems from extensions of these names."""
        return [row for row in self if self._origins.get(row, '') in {'', *names}]

    def _make_room(self, name: str, thing: Any) -> None:
        """Has an extension of another config, which was loaded before, give way."""
        if name not in self or _is_retyped(thing):
            return
        origin = self._origins.get(name)
        if origin in (None, '', extensions.being_loaded()):
            raise UserError(f'{name!r} is in the table of config.{self.key} already; rename it.')
        extensions.unload(origin)

    def _remove(self, name: str) -> None:
        for table in (self, self.facts, self._origins):
            table.pop(name, None)

    def _add_choice(self, name: str) -> None:
        row = OPTIONS.get(self.key)
        if row is None or not row.choices or name in row.choices:
            return
        OPTIONS[self.key] = dataclasses.replace(row, choices=(*row.choices, name))
        extensions.on_removal(functools.partial(_remove_choice, self.key, name))


def add_option(row: Option) -> None:
    """Adds an option of an extension to those that configs have.

    Raises:
      UserError: there is an option of that name, or no extension is being loaded.
    """
    if not extensions.being_loaded():
        raise UserError(
            f'config.{row.key} can only be added by a file that config.extensions names, since '
            'whoever opens the run has to find it.'
        )
    if row.key in OPTIONS and OPTIONS[row.key].origin not in ('', extensions.being_loaded()):
        extensions.unload(OPTIONS[row.key].origin)
    if row.key in OPTIONS:
        raise UserError(f'there is an option config.{row.key} already; rename the new one.')
    OPTIONS[row.key] = dataclasses.replace(row, origin=extensions.being_loaded())
    extensions.on_removal(functools.partial(OPTIONS.pop, row.key, None))


def _is_retyped(thing: Any) -> bool:
    """Returns whether it stems from a notebook, where a cell is run again when it has changed."""
    return getattr(thing, '__module__', '') == '__main__'


def _remove_choice(key: str, name: str) -> None:
    row = OPTIONS[key]
    choices = tuple(choice for choice in row.choices if choice != name)
    OPTIONS[key] = dataclasses.replace(row, choices=choices)
