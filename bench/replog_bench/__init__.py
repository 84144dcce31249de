"""Measures replog, always beside the bare pipeline that does the same work without consensus."""
