"""What setup.cfg cannot say: experiments/, at the top, is installed as flaxcls.experiments."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=['flaxcls', 'flaxcls.*']),
        'flaxcls.experiments',
        'flaxcls.experiments.sweeps',
    ],
    package_dir={'flaxcls.experiments': 'experiments'},
)
