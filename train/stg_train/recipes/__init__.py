"""The recipes that come with stg, one TOML file each."""
