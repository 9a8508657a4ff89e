"""Experiments that mix what different papers propose.  They may import papers; nothing imports them."""
