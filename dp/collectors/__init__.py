"""Who makes demonstrations, and how they are recorded. A collector is one file and one YAML."""

from dp.collectors.demonstration import Collector, Demonstration, Recorder, replay

__all__ = ["Collector", "Demonstration", "Recorder", "replay"]
