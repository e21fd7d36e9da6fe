"""What a process of its own answers in tests, which need not import what they do."""

import time


def slow_or_broken(factor):
    def answer(key):
        time.sleep(key["seconds"])
        return {"value": factor // key["by"]}

    return answer
