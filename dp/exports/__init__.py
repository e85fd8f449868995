"""Policies for other people's software: ONNX, AOTInductor, LeRobot."""
