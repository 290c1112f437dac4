"""The forms in which a trained network leaves flaxcls, and the proof that each is still itself."""
