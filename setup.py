"""What setup.cfg cannot say: where experiments/ is installed, and how kernels are compiled.

Kernels run on CPUs, see flaxcls/ops/native.py. They need the headers of jaxlib and of oneDNN, which
an isolated build does not see: `make` builds without isolation. Where these or a compiler are not
there, flaxcls is installed all the same, and XLA does their work.
"""

import importlib.metadata
import importlib.util
import pathlib
import sys

from setuptools import Extension, find_packages, setup

# -fno-trapping-math lets loops with a ReLU be vectorised; NaN and infinity stay what they are.
FLAGS = ['-std=c++17', '-O3', '-fopenmp', '-fno-math-errno', '-fno-trapping-math']


def kernels() -> list[Extension]:
    """Returns the kernels, if what they are made of is here."""
    jaxlib = importlib.util.find_spec('jaxlib')
    onednn = pathlib.Path(sys.prefix, 'lib', 'libdnnl.so.3')
    header = pathlib.Path(sys.prefix, 'include', 'dnnl.hpp')
    if not (jaxlib and onednn.exists() and header.exists()):
        return []
    version = importlib.metadata.version('jaxlib')
    extension = Extension(
        'flaxcls.ops._kernels',
        sorted(str(path) for path in pathlib.Path('flaxcls/ops/kernels').glob('*.cc')),
        depends=sorted(str(path) for path in pathlib.Path('flaxcls/ops/kernels').glob('*.h')),
        include_dirs=[str(header.parent)],
        define_macros=[('FLAXCLS_JAXLIB', f'"{version}"')],
        extra_compile_args=[
            *FLAGS,
            '-isystem',
            str(pathlib.Path(jaxlib.origin).parent / 'include'),
        ],
        extra_link_args=['-fopenmp', str(onednn)],
        language='c++',
        optional=True,  # Where there is no compiler, a warning.
    )
    return [extension]


setup(
    packages=[
        *find_packages(include=['flaxcls', 'flaxcls.*']),
        'flaxcls.experiments',
        'flaxcls.experiments.sweeps',
    ],
    package_dir={'flaxcls.experiments': 'experiments'},
    ext_modules=kernels(),
)
