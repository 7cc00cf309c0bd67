"""Words that every other room uses: types, checks, trees, metrics, mesh."""
