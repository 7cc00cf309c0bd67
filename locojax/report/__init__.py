"""Tables and figures from run folders and result files."""
