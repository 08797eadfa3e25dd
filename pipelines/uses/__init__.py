"""What a collection is used for beside search: near-duplicates, clusters, outliers, recommendations."""
