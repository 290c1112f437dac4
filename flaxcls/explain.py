"""Shows what a trained network sees."""

from flaxcls.attribution import grad_cam

__all__ = ['grad_cam']
