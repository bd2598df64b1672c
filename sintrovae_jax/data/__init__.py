"""The input pipeline, the only part of the package that imports TensorFlow. This file does not import it."""
