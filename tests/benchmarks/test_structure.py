"""The structure stays small: counted on the code itself."""

import ast

import pytest

from benchmarks import structure

MEASURED = structure.measure()


@pytest.mark.parametrize('name', MEASURED)
def test_the_structure_is_within_its_limits(name):
    number, most, parts = MEASURED[name]
    assert number <= most, parts


def test_a_circle_of_packages_is_found():
    edges = {'flaxcls.models.a': {'flaxcls.data.b'}, 'flaxcls.data.b': {'flaxcls.models.a'}}
    everything = {f'flaxcls.{path.name}': set() for path in structure.ROOT.iterdir()}
    with pytest.raises(ValueError, match='circle'):
        structure.floors(everything | edges)


@pytest.mark.parametrize(
    'source, expected',
    [
        ('def f(x: ConfigDict): ...', ['m.f']),
        ('def f(*, config): ...', ['m.f']),
        ('class A:\n  c: ConfigDict\nclass B:\n  a: A\ndef f(b: B | None): ...', ['m.f']),
        ('class A:\n  def __init__(self, c: ConfigDict): ...', ['m.__init__']),
        ('def f(config: str): ...', []),
        ('def f(x: int) -> ConfigDict: ...', []),
    ],
)
def test_receivers_of_a_config_are_found(source, expected):
    assert structure.receivers({'m': ast.parse(source)}) == expected
