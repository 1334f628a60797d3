/*
 * Does with the library what its words say, and prints what comes of it:
 *
 *     use connect LOCATION
 *     use checkpoint LOCATION PID | restore LOCATION PID
 *     use deadline LOCATION PID       restore, with SO_RCVTIMEO of 50 ms
 *     use interrupted LOCATION PID    restore, with a signal every millisecond
 *     use twice LOCATION PID          restore, and again on the same connection
 *     use mistakes
 */
#define _DEFAULT_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <libmemcrclient.h>
#include <libmemcrclient.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

static volatile sig_atomic_t n_signals;

static void count(int signal)
{
    (void)signal;
    n_signals++;
}

static void interrupt_often(void)
{
    struct sigaction action = { 0 };
    struct itimerval often = { { 0, 1000 }, { 0, 1000 } };
    action.sa_handler = count; /* without SA_RESTART */
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
}

static void tell(const char *what, int value)
{
    printf("%s %d %s\n", what, value, errno ? strerror(errno) : "-");
}

static int request(const char *verb, int cd, unsigned int pid)
{
    errno = ENOTTY; /* something that is never the answer */
    if (!strcmp(verb, "checkpoint"))
        return memcr_client_checkpoint(cd, pid);
    return memcr_client_restore(cd, pid);
}

static int mistakes(void)
{
    char path[200];
    memset(path, 'p', sizeof(path));
    path[sizeof(path) - 1] = 0;
    tell("null", memcr_client_connect(NULL));
    tell("empty", memcr_client_connect(""));
    tell("port", memcr_client_connect("70000"));
    tell("long", memcr_client_connect(path));
    tell("nobody", memcr_client_connect("/nonexistent/socket"));
    tell("negative", memcr_client_checkpoint(-1, 1));
    tell("closed", memcr_client_restore(1000, 1));
    memcr_client_disconnect(-1);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "mistakes"))
        return mistakes();
    if (argc < 3)
        return 2;
    const char *verb = argv[1];
    int cd = memcr_client_connect(argv[2]);
    if (cd < 0) {
        tell("connect", cd);
        return 1;
    }
    if (!strcmp(verb, "connect"))
        printf("connect %s\n", fcntl(cd, F_GETFD) & FD_CLOEXEC ? "cloexec" : "-");
    if (!strcmp(verb, "deadline")) {
        struct timeval deadline = { 0, 50 * 1000 };
        setsockopt(cd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline));
    }
    if (!strcmp(verb, "interrupted"))
        interrupt_often();
    if (argc > 3) {
        unsigned int pid = strtoul(argv[3], NULL, 10);
        tell(verb, request(verb, cd, pid));
        if (!strcmp(verb, "twice"))
            tell(verb, request(verb, cd, pid));
    }
    if (!strcmp(verb, "interrupted"))
        printf("%s\n", n_signals > 0 ? "interrupted" : "quiet");
    memcr_client_disconnect(cd);
    if (fcntl(cd, F_GETFD) != -1)
        printf("not closed\n");
    return 0;
}
