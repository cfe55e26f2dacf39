"""Training of classifiers: conditional networks beside their static twins, exactly resumable.

Nothing is imported here: `condconv.training.config` alone is enough to read a command line, and answers at once.
"""
