"""Many jobs, several at a time, that can be stopped at any moment."""
import queue
import threading


class Workers:
    """Threads that work on jobs; `interrupted` is set when no new one may begin.

    They are daemons: a program that does not want to wait for them can just end.
    """

    def __init__(self, count):
        self.count = count
        self.interrupted = threading.Event()
        self.threads = []

    def results(self, function, jobs):
        """Yields (number of a job, function(job)) as they finish; raises what one raised."""
        waiting = queue.SimpleQueue()
        finished = queue.SimpleQueue()  # (number, result, exception or None)
        for number, job in enumerate(jobs):
            waiting.put((number, job))

        def work():
            while not self.interrupted.is_set():
                try:
                    number, job = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    finished.put((number, function(job), None))
                except BaseException as error:
                    finished.put((number, None, error))

        self.interrupted.clear()
        count = min(self.count, len(jobs))
        self.threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()
        for _ in jobs:
            number, result, error = finished.get()
            if error:
                raise error
            yield number, result

    def stop(self):
        """No new job begins."""
        self.interrupted.set()

    def join(self):
        """Waits for the jobs under way."""
        for thread in self.threads:
            if thread.is_alive():  # one that never started cannot be joined
                thread.join()
