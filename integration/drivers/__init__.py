"""How the contract speaks to each library: one driver a library."""
