"""Tests of the wire: headers, the W3C codec, propagation; and what odd objects do to them. No broker."""
