/* One rank of a peer of the host benchmark: takes commands from a pipe of its own, so that it uses no processor while others
 * are measured, and times calls one by one. Rank 0 replies on a pipe too. See bench/src/host_groups/protocol.rs. */
#ifndef RANK_H
#define RANK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What a peer is: the calls that it can make. All return 0, or else something that is printed. */
struct peer {
  int rank, world_size;
  /* The sum over all ranks, in place. */
  int (*all_reduce)(float *data, size_t count);
  int (*send)(const void *data, size_t bytes, int peer);
  int (*receive)(void *data, size_t bytes, int peer);
};

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int compare(const void *a, const void *b) {
  int64_t one = *(const int64_t *)a, other = *(const int64_t *)b;
  return (one > other) - (one < other);
}

/* One call; `bytes` are a multiple of 4. */
static int call(const struct peer *peer, int is_all_reduce, float *data, size_t bytes) {
  if (is_all_reduce) return peer->all_reduce(data, bytes / sizeof(float));
  if (peer->rank == 0) {
    int error = peer->send(data, bytes, 1);
    return error ? error : peer->receive(data, bytes, 1);
  }
  if (peer->rank == 1) {
    int error = peer->receive(data, bytes, 0);
    return error ? error : peer->send(data, bytes, 0);
  }
  return 0;
}

/* Calls between two looks at the clock that count for all ranks: each look is a small call itself. */
static size_t calls_between_looks(size_t bytes) { return bytes < 64 << 10 ? 16 : 1; }

/* Makes the calls of one command, as many as fit the time that it names; gives what is wrong, or null. */
static const char *measure(const struct peer *peer, int is_all_reduce, size_t bytes, size_t most, int64_t limit,
                           FILE *replies) {
  size_t count = bytes / sizeof(float);
  float *data = (float *)malloc(bytes);
  int64_t *samples = (int64_t *)malloc(most * sizeof(int64_t));
  if (!data || !samples) return "no memory";
  /* A call whose result is known warms up and shows that the peer does what it says. */
  for (size_t i = 0; i < count; i++) data[i] = (float)(peer->rank + 1);
  if (call(peer, is_all_reduce, data, bytes)) return "a call failed";
  float sum = (float)(peer->world_size * (peer->world_size + 1) / 2);
  float expected = is_all_reduce ? sum : (float)(peer->rank == 1 ? 1 : peer->rank + 1);
  for (size_t i = 0; i < count; i++)
    if (data[i] != expected) return "a result is wrong";
  /* Sums of zeros stay numbers for as long as it takes. */
  memset(data, 0, bytes);
  int64_t start = nanoseconds(), last = start, total = 0;
  size_t calls = 0;
  while (calls < most) {
    if (calls % calls_between_looks(bytes) == 0) {
      /* Rank 0 says whether time is up. It is no part of any sample. */
      float is_over = peer->rank == 0 && calls > 0 && nanoseconds() - start > limit;
      if (peer->all_reduce(&is_over, 1)) return "a call failed";
      if (is_over > 0) break;
      last = nanoseconds();
    }
    if (call(peer, is_all_reduce, data, bytes)) return "a call failed";
    int64_t now = nanoseconds();
    total += samples[calls++] = now - last;
    last = now;
  }
  qsort(samples, calls, sizeof(int64_t), compare);
  if (replies) {
    fprintf(replies, "ok %lld %lld %lld %zu\n", (long long)samples[0], (long long)samples[calls / 2], (long long)total,
            calls);
    fflush(replies);
  }
  free(samples);
  free(data);
  return NULL;
}

/* Takes commands from the pipe `<folder>/<rank>` until it is told to quit. */
static int serve(const struct peer *peer, const char *folder) {
  char path[4096], line[256], operation[64], type[16];
  snprintf(path, sizeof path, "%s/%d", folder, peer->rank);
  FILE *commands = fopen(path, "r");
  snprintf(path, sizeof path, "%s/replies", folder);
  FILE *replies = peer->rank == 0 ? fopen(path, "w") : NULL;
  if (!commands || (peer->rank == 0 && !replies)) {
    perror("opening a pipe");
    return 1;
  }
  if (replies) {
    fprintf(replies, "ready\n");
    fflush(replies);
  }
  while (fgets(line, sizeof line, commands)) {
    unsigned long long bytes, most, limit;
    if (sscanf(line, "%63s %15s %llu %llu %llu", operation, type, &bytes, &most, &limit) != 5) break;
    const char *problem = "no such command";
    int is_all_reduce = !strcmp(operation, "all_reduce");
    if ((is_all_reduce || !strcmp(operation, "ping_pong")) && !strcmp(type, "f32") && bytes >= 4 && most > 0)
      problem = measure(peer, is_all_reduce, bytes, most, (int64_t)limit, replies);
    if (problem) {
      fprintf(stderr, "rank %d: %s: %s", peer->rank, problem, line);
      if (replies) {
        fprintf(replies, "error %s\n", problem);
        fflush(replies);
      }
      return 1;
    }
  }
  return 0;
}

#endif
