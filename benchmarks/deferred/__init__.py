"""What runs in a triggerer's processes while they are measured; imports Airflow, so not at the head."""
