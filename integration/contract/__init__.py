"""The contract: 28 behaviours, written once and shown by every adapter in every style through both APIs.

``suite.Contract`` holds them. Worker processes import parts of this package, so nothing is imported here.
"""
