"""The venues that K4 can trade on; others register in the entry-point group `k4.td.exchanges`."""
