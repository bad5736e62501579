"""The commands stg-train, stg-export and stg-run: parse, call one library function, report."""
