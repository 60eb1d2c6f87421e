"""Which tasks help which: GradTS (Ma et al., 2021) and AUTOSEM (Guo et al., 2019).

Nothing here runs a training where it likes: `select` names the trainings that it needs, and the caller runs them.
"""
