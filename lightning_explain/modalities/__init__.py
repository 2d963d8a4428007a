"""What the input is, so far images: where a map lies on the input, and what one unit of it is.

In: attribution maps in the shape of an input or of a layer. Out: the same maps in input space.
Must not import ``model``, ``engine``, ``render`` or anything above them, nor Lightning or Captum.
Begin reading with ``image.py``.
"""
