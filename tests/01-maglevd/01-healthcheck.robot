*** Settings ***
Documentation       The health of real servers, from the probe to the weight, as an operator sees it: the installed
...                 maglevd and maglevc, first without VPP, then with the stand-in for VPP's lb plugin.
...                 The tests of one half build on each other, in this order.

Library             MaglevLab.py    ${CURDIR}/maglevd-lab/maglev.yaml

Suite Setup         Open Lab
Suite Teardown      Close Lab
Test Teardown       Run Keyword If Test Failed    Show Logs
Test Timeout        60 seconds


*** Test Cases ***
The Configuration Is Checked Before Anything Starts
    Checking The Configuration Should End With Status    0
    Change The Configuration    rise: 2    raise: 2
    Checking The Configuration Should End With Status    1    maglev.healthchecks.http-200ms    raise
    Restore The Configuration
    Change The Configuration    web3: {weight: 100}    web9: {weight: 100}
    Checking The Configuration Should End With Status    2
    ...    maglev.frontends.http-vip.pools[1].backends.web9
    [Teardown]    Restore The Configuration

No Server, Exit Status 3
    Maglevc Should Fail    3    show    version

The Daemon Starts
    Start Maglevd Without VPP
    Maglevd Should Be Running
    Maglevc Should Say    show    version    maglevd

Static Backends Are Up At Once
    Static Backend Should Be Up    static-primary
    Static Backend Should Be Up    static-fallback

All Backends Come Up
    Start To Watch Events
    FOR    ${name}    IN    web1    web2    web3
        Backend Should Become    ${name}    up    code=L7OK
    END
    Backend Should Be    static-primary    up
    Backend Should Be    static-fallback    up
    Frontend Should Be    http-vip    up
    Frontend Should Be    failover-vip    up

Probes Reach The Servers
    FOR    ${name}    IN    web1    web2    web3
        Probes Should Arrive    ${name}
    END

The Primary Pool Serves And The Secondary Stands By
    Effective Weight Should Be    http-vip    web1    100
    Effective Weight Should Be    http-vip    web2    50
    Effective Weight Should Be    http-vip    web3    0
    Effective Weight Should Be    failover-vip    static-primary    100
    Effective Weight Should Be    failover-vip    static-fallback    0

Pause Stops The Probes
    Set Backend    web1    pause
    Backend Should Be    web1    paused
    Probes Should Not Arrive    web1
    Effective Weight Should Be    http-vip    web1    0
    Effective Weight Should Be    http-vip    web2    50

Resume Starts The Probes
    Mark The Events
    Set Backend    web1    resume
    Backend Should Become    web1    up    code=L7OK
    Probes Should Arrive    web1
    Effective Weight Should Be    http-vip    web1    100

Disable Stops The Probes
    Remember The History Of    web1
    Set Backend    web1    disable
    Backend Should Be    web1    disabled
    Probes Should Not Arrive    web1
    Effective Weight Should Be    http-vip    web1    0
    Member Should Be Flagged    http-vip    web1    disabled
    Maglevc Should Fail    1    set    backend    web1    pause
    Maglevc Should Fail    1    set    backend    web1    resume
    Set Backend    web1    disable

Enable Starts The Probes Of The Same Backend
    Mark The Events
    Set Backend    web1    enable
    Backend Should Become    web1    up    code=L7OK
    Probes Should Arrive    web1
    Effective Weight Should Be    http-vip    web1    100
    History Should Have Grown By    web1    up -> disabled    disabled -> unknown    unknown -> up
    Code Of The Last Transition To Should Be    web1    unknown    enabled
    Set Backend    web1    enable
    History Should Have Grown By    web1    up -> disabled    disabled -> unknown    unknown -> up

Drain Keeps Probing
    Set Backend    web1    drain
    Backend Should Be    web1    up
    Effective Weight Should Be    http-vip    web1    0
    Member Should Be Flagged    http-vip    web1    drained
    Probes Should Arrive    web1
    Set Backend    web1    undrain
    Effective Weight Should Be    http-vip    web1    100

The Fallback Takes Over From A Disabled Primary
    Set Backend    static-primary    disable
    Effective Weight Should Be    failover-vip    static-primary    0
    Effective Weight Should Be    failover-vip    static-fallback    100
    Frontend Should Be    failover-vip    up

The Fallback Steps Back For An Enabled Primary
    Set Backend    static-primary    enable
    Static Backend Should Be Up    static-primary
    Effective Weight Should Be    failover-vip    static-primary    100
    Effective Weight Should Be    failover-vip    static-fallback    0

A Failing Server Is Down After Fall Probes And Up Again After Rise
    Mark The Events
    Server Answers    web1    503
    Backend Should Become    web1    down    code=L7STS
    Probes Before The Verdict Should Be    web1    2
    Effective Weight Should Be    http-vip    web1    0
    Mark The Events
    Server Answers    web1    200
    Backend Should Become    web1    up    code=L7OK
    Probes Before The Verdict Should Be    web1    2
    Effective Weight Should Be    http-vip    web1    100

A Stopped Server Is Down And Its Pool Fails Over
    Mark The Events
    Stop Server    web1
    Backend Should Become    web1    down    code=L4CON
    Effective Weight Should Be    http-vip    web2    50
    Stop Server    web2
    Backend Should Become    web2    down    code=L4CON
    Effective Weight Should Be    http-vip    web3    100
    Mark The Events
    Start Server    web1
    Start Server    web2
    Backend Should Become    web1    up
    Backend Should Become    web2    up
    Effective Weight Should Be    http-vip    web1    100
    Effective Weight Should Be    http-vip    web3    0

A Set Weight Is Seen At Once
    Mark The Events
    Maglevc    set    frontend    http-vip    pool    primary    backend    web2    weight    30
    Configured Weight Should Be    http-vip    web2    30
    Effective Weight Should Be    http-vip    web2    30
    Maglevc    set    frontend    http-vip    pool    primary    backend    web2    weight    default
    Configured Weight Should Be    http-vip    web2    50
    Effective Weight Should Be    http-vip    web2    50
    Maglevc Should Fail    2    set    frontend    http-vip    pool    primary    backend    web2    weight    101

A Bad Reload Is Refused And Names Its Errors
    Remember The Probe Counts
    Change The Configuration    rise: 2    raise: 2
    Reload Should Be Refused    maglev.healthchecks.http-200ms    raise
    Restore The Configuration
    Change The Configuration    web3: {weight: 100}    web9: {weight: 101}
    Reload Should Be Refused    maglev.frontends.http-vip.pools[1].backends.web9
    Reload By Signal Should Be Refused    maglev.frontends.http-vip.pools[1].backends.web9
    Maglevd Should Be Running
    Probe Counts Should Have Been Kept
    Effective Weight Should Be    http-vip    web1    100
    [Teardown]    Restore The Configuration

A Good Reload Keeps Counters And History
    Remember The Probe Counts
    Remember The History Of    web1
    Change The Configuration
    ...    static-fallback: {address: 127.89.2.2}
    ...    static-fallback: {address: 127.89.2.2}\n${SPACE * 4}static-new: {address: 127.89.2.3}
    Maglevc    config    reload
    Static Backend Should Be Up    static-new
    Probe Counts Should Have Been Kept
    History Should Have Grown By    web1
    Restore The Configuration
    Maglevc    config    reload
    Maglevc Should Fail    1    show    backends    static-new

A Changed Check Goes On In The Present State
    Remember The History Of    web1
    Remember The History Of    web2
    Change The Configuration    interval: 200ms    interval: 300ms
    Maglevc    config    reload
    Effective Weight Should Be    http-vip    web1    100
    Effective Weight Should Be    http-vip    web2    50
    Probes Should Arrive    web1
    History Should Have Grown By    web1
    History Should Have Grown By    web2
    Restore The Configuration
    Maglevc    config    reload

Words Are Checked
    Maglevc Should Fail    1    show    frontends    no-such
    Maglevc Should Fail    2    show    bogus    expecting=bogus
    Maglevc Should Fail    2    show    frontends    http-vip    surplus    expecting=surplus
    Maglevc Should Say    sh    fr    failover-vip    static-primary weight 100 effective 100

Watch Events Shows It All
    Watched Transitions Should Include    web1
    ...    up -> paused    paused -> unknown    unknown -> up    up -> disabled    disabled -> unknown    unknown -> up
    ...    up -> down    down -> up    up -> down    down -> up
    Watched Transitions Should Include    static-primary    up -> disabled    disabled -> unknown    unknown -> up
    Watched Events Should Tell The Drain Of    web1
    Watched Events Should Tell The Weight Of    web2    30
    Watching A Number Of Events Should End    3

SIGTERM Ends Everything Cleanly
    Stop Maglevd Should End With Status    0
    Watch Should Have Ended
    Probes Should Not Arrive    web1

With The Stand-In: The Dataplane Is Programmed
    Start Stand In
    Start Maglevd With VPP
    Start To Watch Events
    Weights In VPP Should Become    http-vip    web1=10    web2=5    web3=0
    Weights In VPP Should Become    failover-vip    static-primary=10    static-fallback=0

With The Stand-In: A Disabled Backend Is Flushed And Stays
    Remember The Calls To VPP
    Set Backend    web1    disable
    Weights In VPP Should Become    http-vip    web1=0    web2=5    web3=0
    VPP Should Have Flushed    web1
    Set Backend    web1    enable
    Weights In VPP Should Become    http-vip    web1=10    web2=5    web3=0

With The Stand-In: The Fallback Takes Over And Steps Back
    Set Backend    static-primary    disable
    Weights In VPP Should Become    failover-vip    static-primary=0    static-fallback=10
    Set Backend    static-primary    enable
    Weights In VPP Should Become    failover-vip    static-primary=10    static-fallback=0

With The Stand-In: Stopped Servers Fail Over
    Remember The Calls To VPP
    Stop Server    web1
    Weights In VPP Should Become    http-vip    web1=0    web2=5    web3=0
    VPP Should Have Flushed    web1
    Stop Server    web2
    Weights In VPP Should Become    http-vip    web1=0    web2=0    web3=10
    Start Server    web1
    Start Server    web2
    Weights In VPP Should Become    http-vip    web1=10    web2=5    web3=0

With The Stand-In: A Set Weight Reaches VPP
    Maglevc    set    frontend    http-vip    pool    primary    backend    web2    weight    30
    Weights In VPP Should Become    http-vip    web1=10    web2=3    web3=0
    Maglevc    set    frontend    http-vip    pool    primary    backend    web2    weight    default
    Weights In VPP Should Become    http-vip    web1=10    web2=5    web3=0

With The Stand-In: A Second Sync Has Nothing To Do
    Maglevc    sync    vpp    lb    state
    Remember The Calls To VPP
    Maglevc    sync    vpp    lb    state
    VPP Should Have Seen No Write

With The Stand-In: A Changed Check Changes No Weight
    Remember The Calls To VPP
    Remember The History Of    web1
    Change The Configuration    interval: 200ms    interval: 300ms
    Maglevc    config    reload
    Probes Should Arrive    web1
    Probes Should Arrive    web2
    VPP Should Have Seen No Write
    History Should Have Grown By    web1
    Restore The Configuration
    Maglevc    config    reload
    VPP Should Have Seen No Write

With The Stand-In: SIGTERM Leaves The Dataplane As It Is
    Remember The Calls To VPP
    Stop Maglevd Should End With Status    0
    VPP Should Have Been Told Goodbye
    VPP Should Have Seen No Write
    Weights In VPP Should Be    http-vip    web1=10    web2=5    web3=0

With The Stand-In: A Restart Changes No Weight
    Remember The Calls To VPP
    Start Maglevd With VPP
    Start To Watch Events
    FOR    ${name}    IN    web1    web2    web3
        Backend Should Become    ${name}    up
    END
    Full Sync Should Have Ended
    VPP Should Have Seen No Write
    Weights In VPP Should Be    http-vip    web1=10    web2=5    web3=0
    Weights In VPP Should Be    failover-vip    static-primary=10    static-fallback=0

With The Stand-In: A Restart With A Lost Probe Changes No Weight
    Remember The Calls To VPP
    Stop Maglevd Should End With Status    0
    Lose The Next Probe To    web1
    Start Maglevd With VPP
    Start To Watch Events
    Probe Should Have Been Lost By    web1
    Backend Should Become    web1    up
    Full Sync Should Have Ended
    VPP Should Have Seen No Write
    Watched Transitions Should Not Include    web1    unknown -> down
    Weights In VPP Should Be    http-vip    web1=10    web2=5    web3=0

With The Stand-In: An Emptied VPP Is Programmed Again
    Stop Stand In
    Maglevc Should Fail    1    show    vpp    info
    Effective Weight Should Be    http-vip    web1    100
    Start Stand In
    Weights In VPP Should Become    http-vip    web1=10    web2=5    web3=0
    Weights In VPP Should Become    failover-vip    static-primary=10    static-fallback=0
    Stop Maglevd Should End With Status    0
