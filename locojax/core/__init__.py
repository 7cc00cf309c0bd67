"""What all other packages use: types, checks, trees, boxes, files, mesh."""
