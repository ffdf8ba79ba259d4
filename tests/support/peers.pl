#!/usr/bin/perl
# The ends of connections between a guest and its host: `peers.pl host ADDRESS..` serves on all addresses, `peers.pl guest
# ADDRESS CONNECTIONS` tries what serves there and says what it saw, `peers.pl answer PORT` and `peers.pl ask ADDRESS PORT` are the
# half-closed connection alone.
use strict;
use warnings;
use Socket qw(:all);
$SIG{PIPE} = 'IGNORE';
$SIG{CHLD} = 'IGNORE';
$| = 1;

# The ports of the host.
my ($ANSWER, $ECHO, $SOURCE, $SINK, $NAMES, $NOBODY) = (7001 .. 7004, 53, 7009);
my $BLOCK = 'x' x 65536;

sub end {
    my ($address, $port, $type) = @_;
    my ($error, $found) = getaddrinfo($address, $port, { flags => AI_NUMERICHOST, socktype => $type });
    die "$address: $error\n" if $error;
    socket(my $socket, $found->{family}, $type, 0) or die "socket: $!\n";
    return ($socket, $found->{addr});
}
sub bound {
    my ($socket, $name) = end(@_);
    setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1);
    bind($socket, $name) or die "bind to @_: $!\n";
    listen($socket, 4096) if $_[2] == SOCK_STREAM;
    return $socket;
}
sub connected {
    my ($socket, $name) = end(@_);
    return connect($socket, $name) ? $socket : undef;
}
sub all { my $socket = shift; local $/; my $said = <$socket>; return $said // "nothing: $!" }

# Whoever asks is answered only after the end of the question.
sub answer { my $socket = shift; my $asked = length all($socket); syswrite($socket, "$asked bytes asked\n") }
sub ask {
    my $socket = connected(@_, SOCK_STREAM) or return "$!\n";
    syswrite($socket, 'question' x 1000);
    shutdown($socket, SHUT_WR);
    return all($socket);
}
# Killed in the middle of what it sends, or of what it gets and has not read.
sub source { my $socket = shift; syswrite($socket, $BLOCK) for 1 .. 64; kill 'KILL', $$ }
sub sink {
    my $socket = shift;
    my ($got, $set) = (0, '');
    $got += sysread($socket, my $some, 65536) || 1 while $got < 1 << 20;
    vec($set, fileno $socket, 1) = 1;
    select($set, undef, undef, undef);
    kill 'KILL', $$;
}

sub serve {
    my ($address, $port, $work) = @_;
    my $listener = bound($address, $port, SOCK_STREAM);
    return if fork;
    while (1) {
        accept(my $socket, $listener) or next;
        next if fork;
        close $listener;
        $work->($socket);
        exit;
    }
}
# All connections of one process, which says how many it had at a time.
sub serve_together {
    my $listener = bound($_[0], $ECHO, SOCK_STREAM);
    return if fork;
    my ($set, $most, %open) = ('', 0);
    vec($set, fileno $listener, 1) = 1;
    while (select(my $ready = $set, undef, undef, undef) > 0) {
        if (vec($ready, fileno $listener, 1) && accept(my $socket, $listener)) {
            $open{fileno $socket} = $socket;
            vec($set, fileno $socket, 1) = 1;
            $most = keys %open if $most < keys %open;
        }
        for my $number (grep { vec($ready, $_, 1) } keys %open) {
            my $word = '';
            next if sysread($open{$number}, $word, 4096) && syswrite($open{$number}, $word =~ s/^most$/$most/r);
            vec($set, $number, 1) = 0;
            delete $open{$number};
        }
    }
}
# A server of names: those that end in .test have an address of each family.
sub serve_names {
    my $socket = bound($_[0], $NAMES, SOCK_DGRAM);
    return if fork;
    while (my $from = recv($socket, my $asked, 2000, 0)) {
        my ($at, @labels) = (12);
        while (my $length = ord substr $asked, $at, 1) { push @labels, substr $asked, $at + 1, $length; $at += $length + 1 }
        my ($type, $question) = (unpack('n', substr $asked, $at + 1), substr $asked, 12, $at + 5 - 12);
        my %data = (1 => inet_aton('10.0.2.2'), 28 => inet_pton(AF_INET6, '2001:db8::1'));
        my ($known, $data) = (($labels[-1] // '') eq 'test', $data{$type});
        my $answer = $known && $data ? pack('nnnNn', 0xc00c, $type, 1, 60, length $data) . $data : '';
        my $header = pack('a2n5', $asked, $known ? 0x8180 : 0x8183, 1, $answer ? 1 : 0, 0, 0);
        send($socket, $header . $question . $answer, 0, $from);
    }
}

sub host {
    # They end together.
    setpgrp;
    $SIG{TERM} = sub { $SIG{TERM} = 'IGNORE'; kill 'TERM', -getpgrp; exit };
    for my $address (@_) {
        serve($address, $ANSWER, \&answer);
        serve($address, $SOURCE, \&source);
        serve($address, $SINK, \&sink);
        serve_together($address);
    }
    serve_names('127.0.0.53');
    print "serves\n";
    sleep;
}

sub guest {
    my ($address, $connections) = @_;
    print 'half-closed: ', ask($address, $ANSWER);
    print 'nobody listens: ', connected($address, $NOBODY, SOCK_STREAM) ? 'connected' : $!, "\n";
    for my $far ('203.0.113.5', '2001:db8:1::5') { print "no way to $far: ", connected($far, 80, SOCK_STREAM) ? 'connected' : $!, "\n" }
    my $datagrams = connected($address, $NOBODY, SOCK_DGRAM);
    send($datagrams, 'word', 0);
    $SIG{ALRM} = sub { print "nothing came back\n"; exit };
    alarm 60;
    print 'nobody gets a datagram: ', recv($datagrams, my $word, 100, 0) ? 'answered' : $!, "\n";
    alarm 0;
    my $source = connected($address, $SOURCE, SOCK_STREAM);
    my $got = length all($source);
    print 'killed as it sent: ', $got > 0 && $got <= 64 << 16 ? 'an end' : "$got bytes, $!", "\n";
    my $sink = connected($address, $SINK, SOCK_STREAM);
    1 while syswrite($sink, $BLOCK);
    print "killed as it received: $!\n";
    my @open;
    for (1 .. $connections) { push @open, connected($address, $ECHO, SOCK_STREAM) // last }
    print 'open: ', scalar @open, "\n";
    syswrite($open[$_], "word $_") for keys @open;
    my ($right, $said) = (0, '');
    for (keys @open) { $right++ if sysread($open[$_], $said, 100) && $said eq "word $_" }
    syswrite($open[0], 'most');
    sysread($open[0], my $most, 100);
    print "echoed: $right, at a time: $most\n";
}

my $verb = shift;
if ($verb eq 'host') { host(@ARGV) }
elsif ($verb eq 'guest') { guest(@ARGV) }
elsif ($verb eq 'answer') { serve('::', $ARGV[0], \&answer) }
else { print ask(@ARGV) }
