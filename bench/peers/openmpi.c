/* MPI as a peer of the host benchmark: mpicc -O2 openmpi.c; mpirun -n 2 a.out FOLDER. */
#include <mpi.h>

#include "rank.h"

static int all_reduce(float *data, size_t count) {
  return MPI_Allreduce(MPI_IN_PLACE, data, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static int send_to(const void *data, size_t bytes, int peer) {
  return MPI_Send(data, (int)bytes, MPI_BYTE, peer, 0, MPI_COMM_WORLD);
}

static int receive_from(void *data, size_t bytes, int peer) {
  return MPI_Recv(data, (int)bytes, MPI_BYTE, peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

int main(int argc, char **argv) {
  struct peer peer = {0, 0, all_reduce, send_to, receive_from};
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &peer.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &peer.world_size);
  int failed = argc != 2 || serve(&peer, argv[1]);
  if (failed) MPI_Abort(MPI_COMM_WORLD, 1);
  MPI_Finalize();
  return 0;
}
