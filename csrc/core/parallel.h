// The one place that knows OpenMP. Jobs are numbered and independent; which thread runs which job
// never changes a result, so the schedule is dynamic (tiles differ in work) and the bits do not
// depend on it.
#pragma once
#include <omp.h>
#include <unistd.h>

#include <cstdint>

namespace ds {

// libgomp's pool does not survive a fork: the child runs serial (set by the pthread_atfork handler
// of bind/).
inline bool& forked_child() {
  static bool forked = false;
  return forked;
}

// job(i, worker): the worker, below both counts, names memory that no other running job uses.
template <class Job>
void parallel_for_workers(int64_t n_jobs, int n_threads, const Job& job) {
  if (n_jobs < n_threads) n_threads = static_cast<int>(n_jobs);
  if (n_threads <= 1 || forked_child()) {
    for (int64_t i = 0; i < n_jobs; ++i) job(i, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(n_threads)
  for (int64_t i = 0; i < n_jobs; ++i) job(i, omp_get_thread_num());
}

template <class Job>
void parallel_for(int64_t n_jobs, int n_threads, const Job& job) {
  parallel_for_workers(n_jobs, n_threads, [&](int64_t i, int) { job(i); });
}

}  // namespace ds
