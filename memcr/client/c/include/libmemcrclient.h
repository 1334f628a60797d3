/*
 * libmemcrclient.h - ask memcr's daemon to take the memory of a process away, and to give
 * it back.
 *
 *     int cd = memcr_client_connect("/run/memcr.sock");
 *     if (cd < 0)
 *         return perror("no daemon"), 1;
 *     int code = memcr_client_checkpoint(cd, pid);      // 0: it is held
 *     memcr_client_disconnect(cd);
 *
 * One connection carries one request: the daemon closes its end behind the answer, so the
 * next request needs a new connection. A request blocks until the daemon has done it, which
 * may take as long as storing gigabytes takes. Whoever wants a deadline sets one on the
 * descriptor with setsockopt(2), SO_RCVTIMEO; when it passes, the request fails with EAGAIN,
 * and the daemon goes on with the work all the same.
 *
 * All functions may be called from any thread, each descriptor by one at a time. No thread
 * is made, no memory is kept, no signal is raised: a daemon that is gone is an error, not
 * SIGPIPE. Interrupted calls (EINTR) are made again.
 *
 * Link with -lmemcrclient, or ask pkg-config for libmemcrclient.
 */
#ifndef LIBMEMCRCLIENT_H
#define LIBMEMCRCLIENT_H

#ifdef __cplusplus
extern "C" {
#endif

/*
 * What the daemon answers.
 */
#define MEMCR_CLIENT_OK 0           /* done */
#define MEMCR_CLIENT_ERROR (-1)     /* it did not work; the daemon's log says why */
#define MEMCR_CLIENT_INVALID_PID (-2) /* no such process; a checkpoint of one that is held or
                                       * under way; a restore of one that is not held */

/*
 * Connects to a daemon. `location` is a TCP port of this machine, if it begins with digits
 * that give a number above 0 ("9000"), else the path of a UNIX socket ("/run/memcr.sock").
 *
 * Returns a descriptor (close-on-exec), or -1 and errno: that of connect(2); EINVAL for a
 * location that is none; ENAMETOOLONG for a path of more than 107 bytes.
 */
int memcr_client_connect(const char *location);

/*
 * Closes the connection. A descriptor below 0 is passed over.
 */
void memcr_client_disconnect(const int cd);

/*
 * Takes the memory of process `pid` away and leaves the process held.
 *
 * Returns the daemon's code (0, -1, -2), or -1 when there is none. errno tells the two
 * meanings of -1 apart: 0 when the daemon has answered, else what went wrong; ECONNRESET
 * when the daemon closed the connection without an answer.
 */
int memcr_client_checkpoint(const int cd, const unsigned int pid);

/*
 * Gives process `pid` its memory back and lets it run; while its checkpoint is under way:
 * aborts that. Returns as memcr_client_checkpoint() does.
 */
int memcr_client_restore(const int cd, const unsigned int pid);

#ifdef __cplusplus
}
#endif

#endif
