"""Files whose rows name their own columns: JSON in all its layouts, parquet, Arrow."""
