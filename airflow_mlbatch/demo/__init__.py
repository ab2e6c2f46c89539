"""The services and the data that the demonstration and the example Dags use."""
