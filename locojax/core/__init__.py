"""Words that all other rooms use: types, checks, trees, boxes, files, mesh."""
