/* workload.c: see workload.h. */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PHASES 16

static struct phase phases[MAX_PHASES];
static int phase_count;

static const struct {
    const char *name;
    uint32_t type;
} types[] = {
    {"DIRECTORY", 1},        {"READ", 2},
    {"GET_PERMS", 3},        {"WATCH", 4},
    {"UNWATCH", 5},          {"TRANSACTION_START", 6},
    {"TRANSACTION_END", 7},  {"INTRODUCE", 8},
    {"RELEASE", 9},          {"GET_DOMAIN_PATH", 10},
    {"WRITE", 11},           {"MKDIR", 12},
    {"RM", 13},              {"SET_PERMS", 14},
    {"IS_DOMAIN_INTRODUCED", 17}, {"RESUME", 18},
    {"SET_TARGET", 19},      {"RESET_WATCHES", 21},
    {"DIRECTORY_PART", 22},
};

static uint32_t type_of(const char *name)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (!strcmp(types[i].name, name))
            return types[i].type;
    fatal("workload: unknown operation %s", name);
}

/* ---- reading ---- */

static int hexadecimal(const char *text)
{
    char digits[3] = {text[0], text[0] ? text[1] : 0, 0}, *end;
    long value = strtol(digits, &end, 16);

    if (end != digits + 2)
        fatal("workload: \\x%s", digits);
    return value;
}

/* Takes the escapes out of a word, in place; the number of bytes. */
static size_t unescape(char *text)
{
    char *to = text;

    for (const char *from = text; *from; from++) {
        if (*from != '\\') {
            *to++ = *from;
        } else if (*++from == '0') {
            *to++ = 0;
        } else if (*from == '\\') {
            *to++ = '\\';
        } else if (*from == 'x') {
            *to++ = hexadecimal(from + 1);
            from += 2;
        } else {
            fatal("workload: an escape that is none");
        }
    }
    return to - text;
}

static struct line *new_line(void)
{
    struct phase *phase = &phases[phase_count - 1];

    if (!phase_count)
        fatal("workload: a line before the first phase");
    phase->lines = realloc(phase->lines, (phase->count + 1) * sizeof(*phase->lines));
    if (!phase->lines)
        fatal("out of memory");
    memset(&phase->lines[phase->count], 0, sizeof(*phase->lines));
    return &phase->lines[phase->count++];
}

static void read_actor(struct line *line, const char *word)
{
    int most = *word == 's' ? MAX_SOCKETS : LIVES;

    line->actor = *word;
    line->number = atoi(word + 1);
    if (!strchr("ckhgs", *word) || line->number < 0 || line->number >= most)
        fatal("workload: actor %s", word);
}

static void read_request(char *text)
{
    struct line *line = new_line();
    char actor[8], operation[24], transaction[8];
    int at = 0;
    char *payload;

    if (sscanf(text, "%7s %23s %7s %23s%n", actor, operation, transaction, line->outcome, &at) != 4)
        fatal("workload: %s", text);
    read_actor(line, actor);
    line->type = type_of(operation);
    line->label = atoi(transaction);
    if (line->label < 0 || line->label >= MAX_LABELS)
        fatal("workload: transaction %s", transaction);
    payload = strdup(text + at + (text[at] == ' '));
    if (!payload)
        fatal("out of memory");
    line->length = unescape(payload);
    line->payload = payload;
}

static void read_event(enum deed deed, const char *word)
{
    struct line *line = new_line();

    line->deed = deed;
    if (deed == DEED_CLOSE)
        read_actor(line, word);
    else
        line->number = atoi(word);
    if (line->number < 0 || (deed != DEED_CLOSE && line->number >= LIVES))
        fatal("workload: life %s", word);
}

static void read_phase(const char *name)
{
    if (phase_count == MAX_PHASES)
        fatal("workload: too many phases");
    phases[phase_count++].name = strdup(name);
}

static void read_line(char *text)
{
    static const char *const deeds[] = {
        [DEED_CREATE] = "create ", [DEED_SHUTDOWN] = "shutdown ", [DEED_GONE] = "gone ", [DEED_CLOSE] = "close "};

    if (!strncmp(text, "phase ", 6)) {
        read_phase(text + 6);
        return;
    }
    for (enum deed deed = DEED_CREATE; deed <= DEED_CLOSE; deed++)
        if (!strncmp(text, deeds[deed], strlen(deeds[deed]))) {
            read_event(deed, text + strlen(deeds[deed]));
            return;
        }
    read_request(text);
}

void workload_read(const char *path)
{
    FILE *file = fopen(path, "r");
    char text[16384];

    if (!file)
        fatal("%s: %s", path, strerror(errno));
    while (fgets(text, sizeof(text), file)) {
        text[strcspn(text, "\n")] = 0;
        if (*text && *text != '#')
            read_line(text);
    }
    fclose(file);
}

const struct phase *workload_phase(const char *name)
{
    for (int i = 0; i < phase_count; i++)
        if (!strcmp(phases[i].name, name))
            return &phases[i];
    fatal("workload: no phase %s", name);
}

/* ---- filling in ---- */

/* What stands for a word in braces, which ends with '}'. */
static int filled(char *to, size_t room, const char *word, int guest, const int *domids)
{
    int bytes;

    if (word[1] != '}')
        fatal("workload: a word that is none");
    if (*word == 'u')
        bytes = snprintf(to, room, "00000000-0000-4000-8000-%012x", guest);
    else if (*word == 'n')
        bytes = snprintf(to, room, "guest-%d", guest);
    else if (*word >= '0' && *word < '0' + LIVES)
        bytes = snprintf(to, room, "%d", domids[*word - '0']);
    else
        fatal("workload: a word that is none");
    if ((size_t)bytes >= room)
        fatal("workload: too long");
    return bytes;
}

void workload_request(const struct line *line, int guest, const int *domids, struct request *request)
{
    const char *from = line->payload, *end = from + line->length;

    request->type = line->type;
    request->length = 0;
    while (from < end) {
        if (request->length >= sizeof(request->payload))
            fatal("workload: too long");
        if (*from == '{') {
            request->length += filled(request->payload + request->length, sizeof(request->payload) - request->length,
                                      from + 1, guest, domids);
            from += 3;
        } else {
            request->payload[request->length++] = *from++;
        }
    }
}
