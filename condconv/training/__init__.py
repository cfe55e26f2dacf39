"""Training of classifiers: conditional networks beside their static twins, exactly resumable."""
