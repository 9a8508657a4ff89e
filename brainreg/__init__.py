"""The brain-inspired regulariser (arXiv:2410.03952): a network's similarities of image pairs pulled to the pixels'."""
